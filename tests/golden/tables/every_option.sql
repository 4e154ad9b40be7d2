CREATE TABLE a (id BIGINT, at TIMESTAMP NOT NULL, WATERMARK FOR at) WITH (
  connector = 'kafka', type = 'source', topic = 'elsewhere', format = 'json', framing = 'newline', bad_data = 'fail',
  late_rows = 'table', 'source.offset' = 'latest', 'source.read_mode' = 'read_committed', 'json.timestamp_format' = 'RFC3339'
);
CREATE TABLE b (value TEXT) WITH (
  connector = 'kafka', type = 'source', format = 'raw_string', bad_data = 'drop', late_rows = 'count', 'source.offset' = 'group',
  'source.group_id' = 'readers', bootstrap_servers = 'b:9092, A', client_configs = 'client.rack=a, fetch.max.bytes=1000000'
);
CREATE TABLE c (room TEXT, n BIGINT) WITH (
  connector = 'kafka', type = 'sink', 'sink.key_field' = 'room', 'sink.commit_mode' = 'at_least_once', emit_every = '200 milliseconds'
);
CREATE TABLE d (at TIMESTAMP NOT NULL, WATERMARK FOR at) WITH (connector = 'single_file', type = 'source', path = 'data/a.jsonl');
CREATE TABLE e (n BIGINT) WITH (connector = 'single_file', type = 'sink', path = '/tmp/a.arrow', format = 'arrow');
CREATE TABLE f (n BIGINT) WITH (connector = 'stdout');
CREATE TABLE g (n BIGINT) WITH (connector = 'blackhole', type = 'sink');
CREATE TABLE h WITH (connector = 'impulse', event_rate = '0.5');
CREATE TABLE i (counter BIGINT UNSIGNED NOT NULL, subtask_index BIGINT UNSIGNED NOT NULL)
WITH (connector = 'impulse', type = 'source', event_rate = '1000', message_count = '10');
CREATE TABLE j (at TIMESTAMP, room TEXT) WITH (
  connector = 'kafka', type = 'sink', 'sink.timestamp_field' = 'at', bootstrap_servers = 'a:9092,b', format = 'arrow'
);
CREATE TABLE k (line TEXT) WITH (connector = 'kafka', type = 'sink', format = 'raw_string', client_configs = 'linger.ms=1');
INSERT INTO f SELECT count(*) FROM h GROUP BY tumble(INTERVAL '1 second'), counter;
