INSERT INTO emoji_counts
SELECT 'main FROM reactions;
