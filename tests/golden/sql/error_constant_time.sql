-- A time that is none, above the window and below it.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions WHERE timestamp < 'tomorrow' GROUP BY window, room, emoji_type)
WHERE window.start > '2026-x' AND room <> 'x';
