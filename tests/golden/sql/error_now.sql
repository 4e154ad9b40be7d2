INSERT INTO emoji_counts
SELECT now(), current_timestamp, room, emoji_type, count, random()
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions WHERE timestamp > now() - INTERVAL '1 hour' GROUP BY window, room, emoji_type);
