CREATE TABLE reactions (
  user_id    TEXT NOT NULL,
  emoji_type TEXT NOT NULL,
  room       TEXT NOT NULL DEFAULT 'main',
  timestamp  TIMESTAMP NOT NULL DEFAULT now(),
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '500 milliseconds')
) WITH (connector = 'kafka', type = 'source', topic = 'reactions', format = 'arrow');

CREATE TABLE emoji_counts (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, emoji_type TEXT, count BIGINT, scaled BIGINT
) WITH (connector = 'kafka', type = 'sink', topic = 'emoji_counts', format = 'json', 'sink.key_field' = 'room');
