-- How many people reacted in each room, beside how often.
INSERT INTO unique_users
SELECT window.start, window.end, room, users, reactions
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room,
         count(DISTINCT user_id) AS users,
         count(*) AS reactions
  FROM reactions
  GROUP BY window, room
);
