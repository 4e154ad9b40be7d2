-- The emotion that most of a room's reactions show, and their share of all of them.
-- Read it from the inside out: each reaction gets an emotion, these are counted, and the first of each room is kept.
INSERT INTO dominant_emotion
SELECT window.start, window.end, room, emotion, reactions, round(share, 2)
FROM (
  SELECT window, room, emotion, reactions,
         CAST(reactions AS DOUBLE) / sum(reactions) OVER (PARTITION BY window, room) AS share,
         -- Two emotions may be equally frequent: the name decides, so that the answer is the same each time.
         row_number() OVER (PARTITION BY window, room ORDER BY reactions DESC, emotion) AS rank
  FROM (
    SELECT tumble(INTERVAL '2 seconds') AS window, room, emotion, count(*) AS reactions
    FROM (
      SELECT room,
             CASE
               WHEN emoji_base(emoji_type) IN ('😂', '🤣', '😆', '😹') THEN 'laughter'
               WHEN emoji_base(emoji_type) IN ('❤', '😍', '🥰', '😘') THEN 'love'
               WHEN emoji_base(emoji_type) IN ('👍', '👏', '🙌', '💯') THEN 'approval'
               WHEN emoji_base(emoji_type) IN ('🎉', '🥳', '🔥', '🏆') THEN 'excitement'
               WHEN emoji_base(emoji_type) IN ('😢', '😭', '💔') THEN 'sadness'
               WHEN emoji_base(emoji_type) IN ('😡', '😠', '👎') THEN 'anger'
               ELSE 'other'
             END AS emotion
      FROM reactions
    )
    GROUP BY window, room, emotion
  )
)
WHERE rank = 1;
