CREATE TABLE tops (window_end TIMESTAMP NOT NULL, best TEXT NOT NULL) WITH (connector = 'kafka', type = 'sink');
INSERT INTO tops SELECT window.end, best
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, max(emoji_type) AS best FROM reactions GROUP BY window);
