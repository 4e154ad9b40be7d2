INSERT INTO emoji_counts
SELECT window.start, window.end, place, emoji_type, n, longest
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, place, emoji_type, count(*) AS n, max(len) AS longest
  FROM (
    SELECT lower(r.room) || '!' AS place, emoji_type, character_length(user_id) + 1 + 1 AS len
    FROM reactions r
    WHERE r.room <> 'test' AND r.emoji_type LIKE '%a'
  ) AS s
  WHERE s.len > 2 * 3 AND true
  GROUP BY window, place, emoji_type
);
