INSERT INTO emoji_counts
SELECT max(window.start), max(window.end), room, max(emoji_type), sum(count), 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY window, room, emoji_type)
GROUP BY room;
