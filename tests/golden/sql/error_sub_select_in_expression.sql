INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, (SELECT max(user_id) FROM reactions)
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions WHERE room IN (SELECT room FROM reactions) GROUP BY window, room, emoji_type);
