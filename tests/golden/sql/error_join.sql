INSERT INTO emoji_counts
SELECT window.start, window.end, a.room, a.emoji_type, count(*), 1
FROM reactions a JOIN reactions b ON a.user_id = b.user_id GROUP BY 1;
