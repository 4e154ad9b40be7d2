-- How each team is cheered: which emoji stands for whom is looked up in teams.json. Emojis of no team are left out, and one
-- that stands for both counts for both.
INSERT INTO team_support
SELECT window.start, window.end, room, team, reactions, people
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room, team, count(*) AS reactions, count(DISTINCT user_id) AS people
  FROM reactions
  JOIN teams ON emoji_base(emoji_type) = emoji
  GROUP BY window, room, team
);
