-- One emoji on the screen for every thousand, and one for what is left: 1 shows one, 1000 one, 1001 two.
INSERT INTO ceil_scaling
SELECT window.start, window.end, room, emoji_type, count, ceil(count / 1000.0) AS scaled
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
  FROM reactions
  GROUP BY window, room, emoji_type
);
