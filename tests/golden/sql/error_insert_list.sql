INSERT INTO emoji_counts (room, emoji_type) VALUES ('main', 'x');
