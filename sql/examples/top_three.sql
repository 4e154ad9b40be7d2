-- The three most frequent emojis of each room; skin tones and variation selectors do not make another emoji.
INSERT INTO top_three
SELECT window.start, window.end, room, rank, emoji, reactions
FROM (
  SELECT window, room, emoji, reactions,
         -- The emoji itself as the last word: without it, equal counts would come in any order.
         row_number() OVER (PARTITION BY window, room ORDER BY reactions DESC, emoji) AS rank
  FROM (
    SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_base(emoji_type) AS emoji, count(*) AS reactions
    FROM reactions
    GROUP BY window, room, emoji
  )
)
WHERE rank <= 3;
