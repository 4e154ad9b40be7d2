CREATE TABLE answer (at TIMESTAMP, emoji TEXT, second BIGINT, length INT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT timestamp, upper(emoji_type), CAST(extract(second FROM timestamp) AS BIGINT), character_length(user_id || room)
FROM (SELECT * FROM reactions WHERE room <> 'side') WHERE emoji_type < 'z';
