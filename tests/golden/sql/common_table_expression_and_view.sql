CREATE VIEW loud AS SELECT upper(emoji_type) AS emoji_type, room FROM quiet;
CREATE VIEW quiet AS SELECT * FROM reactions WHERE room <> 'test';
INSERT INTO emoji_counts
WITH counted AS (
  SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
  FROM loud GROUP BY window, room, emoji_type
)
SELECT window.start, window.end, room, emoji_type, count, 1 FROM counted;
