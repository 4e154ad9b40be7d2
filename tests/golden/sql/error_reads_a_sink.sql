INSERT INTO emoji_counts
SELECT window_start, window_end, room, emoji_type, count, 1 FROM emoji_counts;
