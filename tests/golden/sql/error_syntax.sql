INSERT INTO emoji_counts SELEC room FROM reactions;
CREATE TABLE a (x TEXT,, y TEXT) WITH (connector = 'kafka');
CREATE TABLE b (x TEXT;
INSRT INTO emoji_counts SELECT 1;
CREATE TABLE c (x TEXT, WATERMRK FOR x) WITH (type = 'sink');
CREATE TABLE d (x TEXT NOT NUL) WITH (type = 'sink');
CREATE TABLE e (x TEXT) WITH (type = sink);
CREATE TABLE f (x TEXT);
SELECT count(* FROM reactions
