CREATE TABLE rooms (starts TIMESTAMP, room TEXT, n BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');
CREATE TABLE totals (starts TIMESTAMP, total BIGINT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO rooms
SELECT window.start, room, n
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS n FROM reactions GROUP BY 1, 2);
INSERT INTO totals
SELECT window.start, sum(n)
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS n FROM reactions GROUP BY 1, 2)
GROUP BY window;
