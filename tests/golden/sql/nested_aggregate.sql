INSERT INTO emoji_counts
SELECT window.start, window.end, 'all', max(emoji_type), sum(count), count(*)
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS count
      FROM reactions GROUP BY window, emoji_type)
GROUP BY window;
