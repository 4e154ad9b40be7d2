//! What runs under a [`Load`](super::load::Load): every request is a row of one window, found by the request's tag.
//!
//! Rows carry no timestamp, so the time of receipt is theirs, and the table waits two seconds for rows on their way: none
//! may be late, whatever happens to the process.

/// The source that the load writes, and the sink.
pub(crate) const TABLES: &str = "
CREATE TABLE reactions (
  user_id TEXT NOT NULL, emoji_type TEXT NOT NULL, room TEXT NOT NULL, timestamp TIMESTAMP NOT NULL DEFAULT now(),
  WATERMARK FOR timestamp AS (timestamp - INTERVAL '2 seconds')
) WITH (connector = 'kafka', type = 'source', topic = 'reactions', format = 'arrow');

CREATE TABLE by_request (
  window_start TIMESTAMP, window_end TIMESTAMP, room TEXT, emoji_type TEXT, count BIGINT, people BIGINT
) WITH (connector = 'kafka', type = 'sink', topic = 'by_request', format = 'json', 'sink.key_field' = 'room');
";

/// Counts the rows and the people of each request, every half second.
pub(crate) const QUERY: &str = "
INSERT INTO by_request
SELECT window.start, window.end, room, emoji_type, count, people
FROM (
  SELECT tumble(INTERVAL '500 milliseconds') AS window, room, emoji_type, count(*) AS count,
         count(DISTINCT user_id) AS people
  FROM reactions GROUP BY window, room, emoji_type
);
";
