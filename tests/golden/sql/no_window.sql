INSERT INTO emoji_counts
SELECT timestamp, timestamp, room, emoji_type, 1, 1 FROM reactions;
