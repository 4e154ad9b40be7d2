INSERT INTO emoji_counts
SELECT max(timestamp), max(timestamp), room, emoji_type, count(*), 1 FROM reactions GROUP BY room, emoji_type;
