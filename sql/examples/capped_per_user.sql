-- Nobody shouts louder than others: of each person, at most three of an emoji are counted in a window.
-- The inner SELECT counts each person's, the outer one adds them up; both stay within the same window.
INSERT INTO capped_per_user
SELECT window.start, window.end, room, emoji, counted, sent
FROM (
  SELECT window, room, emoji, sum(least(sent, 3)) AS counted, sum(sent) AS sent
  FROM (
    SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_base(emoji_type) AS emoji, user_id, count(*) AS sent
    FROM reactions
    GROUP BY window, room, emoji, user_id
  )
  GROUP BY window, room, emoji
);
