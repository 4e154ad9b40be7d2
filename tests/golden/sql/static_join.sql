CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT) WITH (connector = 'single_file', path = 'teams.json', type = 'source');
INSERT INTO emoji_counts
SELECT window.start, window.end, room, team, n, 1
FROM (SELECT window, room, emoji_type, n FROM (
        SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_base(emoji_type) AS emoji_type, count(*) AS n
        FROM reactions r LEFT JOIN teams AS reactions ON r.emoji_type = reactions.emoji AND r.room <> reactions.team
        WHERE team IS NOT NULL GROUP BY 1, 2, 3)) c
JOIN (SELECT upper(emoji) AS e, max(team) AS team FROM teams GROUP BY 1) t ON e = upper(c.emoji_type);
