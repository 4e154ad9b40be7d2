CREATE TABLE given (room TEXT NOT NULL, at TIMESTAMP NOT NULL, WATERMARK FOR at) WITH (connector = 'kafka', type = 'source');
CREATE TABLE visits (room TEXT, n BIGINT) WITH (connector = 'kafka', type = 'sink', emit_every = '1 second');
CREATE TABLE filed (n BIGINT) WITH (connector = 'single_file', type = 'sink', path = 'n.jsonl', emit_every = '1 second');
INSERT INTO visits SELECT room, count(*) FROM given GROUP BY room, session(INTERVAL '30 seconds');
