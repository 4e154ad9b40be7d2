CREATE TABLE answer (starts TIMESTAMP, emoji TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

CREATE VIEW main_room AS SELECT emoji_type, user_id FROM reactions WHERE room = 'main';
INSERT INTO answer
WITH counted AS (SELECT tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS n FROM main_room GROUP BY window, emoji_type)
SELECT window.start, emoji_type, n FROM counted WHERE n > 0;
