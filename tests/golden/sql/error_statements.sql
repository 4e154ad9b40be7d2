SELECT count(*) FROM reactions;
DROP TABLE reactions;
INSERT INTO reactions SELECT 'u', 'e', 'r', timestamp FROM reactions;
INSERT INTO emoji_counts SELECT 1 FROM reactions;
INSERT INTO emoji_counts (room) SELECT 1 FROM reactions;
