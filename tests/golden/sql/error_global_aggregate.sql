INSERT INTO emoji_counts
SELECT max(timestamp), max(timestamp), 'main', max(emoji_type), count(*), 1 FROM reactions;
