CREATE TABLE a (at TIMESTAMP NOT NULL) WITH (connector = 'kafka', type = 'source', event_time_field = 'att');
CREATE TABLE b (at TIMESTAMP NOT NULL) WITH (connector = 'kafka', type = 'source', watermark_field = 'at');
CREATE TABLE c (at TIMESTAMP NOT NULL) WITH (connector = 'kafka', type = 'source', event_time_field = 'at', watermark_field = 'wm');
CREATE TABLE d (at TIMESTAMP NOT NULL, wm TIMESTAMP) WITH (connector = 'kafka', type = 'source', event_time_field = 'at', watermark_field = 'wm');
CREATE TABLE e (at TIMESTAMP NOT NULL, wm TIMESTAMP GENERATED ALWAYS AS (at + INTERVAL '1 second'))
WITH (connector = 'kafka', type = 'source', event_time_field = 'at', watermark_field = 'wm');
CREATE TABLE f (at TIMESTAMP NOT NULL, WATERMARK FOR at) WITH (connector = 'kafka', type = 'source', event_time_field = 'at');
CREATE TABLE g (at TIMESTAMP) WITH (connector = 'kafka', type = 'source', event_time_field = 'at');
CREATE TABLE h (at BIGINT NOT NULL) WITH (connector = 'kafka', type = 'source', event_time_field = 'at');
CREATE TABLE i (at TIMESTAMP) WITH (connector = 'kafka', type = 'sink', event_time_field = 'at');
