CREATE TABLE reactions (x TEXT WITH (connector = 'kafka', type = 'source');
CREATE TABLE emoji_counts (window_start TIMESTAMP, n BIGINT) WITH (connector = 'kafka', type = 'sink');
