INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji, count, sentiment * 1000
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, emoji_group(emoji_type) AS room, emoji_base(emoji_type) AS emoji,
         count(*) AS count, avg(emoji_sentiment(emoji_type)) AS sentiment
  FROM reactions
  WHERE emoji_base(emoji_type) <> '👍' AND emoji_name(emoji_type) IS NOT NULL
  GROUP BY window, emoji_group(emoji_type), emoji
);
