-- What the examples read and write. The source is the same as in ../tables.sql; each example has a sink of its own.
-- `emostream up` does not load this folder: copy what you like into sql/, and its sink into sql/tables.sql.
CREATE TABLE reactions (
  user_id    TEXT NOT NULL,
  emoji_type TEXT NOT NULL,
  room       TEXT NOT NULL DEFAULT 'main',
  timestamp  TIMESTAMP NOT NULL DEFAULT now(),
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '500 milliseconds')
) WITH (connector = 'kafka', type = 'source', topic = 'reactions', format = 'arrow');

CREATE TABLE sentiment (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, reactions BIGINT, sentiment DOUBLE
) WITH (connector = 'kafka', type = 'sink', topic = 'sentiment', format = 'json', 'sink.key_field' = 'room');

CREATE TABLE dominant_emotion (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, emotion TEXT, reactions BIGINT, share DOUBLE
) WITH (connector = 'kafka', type = 'sink', topic = 'dominant_emotion', format = 'json', 'sink.key_field' = 'room');

CREATE TABLE top_three (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, rank BIGINT, emoji TEXT, reactions BIGINT
) WITH (connector = 'kafka', type = 'sink', topic = 'top_three', format = 'json', 'sink.key_field' = 'room');

CREATE TABLE unique_users (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, users BIGINT, reactions BIGINT
) WITH (connector = 'kafka', type = 'sink', topic = 'unique_users', format = 'json', 'sink.key_field' = 'room');

CREATE TABLE capped_per_user (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, emoji TEXT, counted BIGINT, sent BIGINT
) WITH (connector = 'kafka', type = 'sink', topic = 'capped_per_user', format = 'json', 'sink.key_field' = 'room');

CREATE TABLE ceil_scaling (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, emoji_type TEXT, count BIGINT, scaled BIGINT
) WITH (connector = 'kafka', type = 'sink', topic = 'ceil_scaling', format = 'json', 'sink.key_field' = 'room');

CREATE TABLE team_support (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, team TEXT, reactions BIGINT, people BIGINT
) WITH (connector = 'kafka', type = 'sink', topic = 'team_support', format = 'json', 'sink.key_field' = 'room');

-- A static table: it declares no event time, so it is read whole when a query starts. An object a line.
CREATE TABLE teams (
  emoji TEXT NOT NULL,
  team  TEXT NOT NULL
) WITH (connector = 'single_file', path = 'teams.json', type = 'source', format = 'json');
