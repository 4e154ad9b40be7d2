INSERT INTO emoji_counts
SELECT window.start, window.end, rom, emoji_type, count, uper(room)
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_typ, count(*) AS count
      FROM reactons GROUP BY window, room, emoji_type);
