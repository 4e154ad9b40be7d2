CREATE TABLE answer (starts TIMESTAMP, shade TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT w.window.start, w.shade, w.n
FROM (SELECT tumble(INTERVAL '1 second' + INTERVAL '500 milliseconds') AS window, upper(room) || emoji_type AS shade, count(*) AS n
      FROM reactions GROUP BY 1, upper(room) || emoji_type) AS w;
