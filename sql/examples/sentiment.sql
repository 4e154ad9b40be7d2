-- How a room feels, every two seconds, from -1 to 1: the mean over its reactions.
-- What is no emoji, and emojis that nobody has rated, have no sentiment: avg() leaves their nulls out.
INSERT INTO sentiment
SELECT window.start, window.end, room, reactions, round(sentiment, 3)
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room,
         count(*) AS reactions,
         avg(emoji_sentiment(emoji_type)) AS sentiment
  FROM reactions
  GROUP BY window, room
);
