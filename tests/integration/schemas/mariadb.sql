-- A schema that hurts, for MariaDB 10.11 and newer. Run it with the mariadb client on an empty database.

CREATE SEQUENCE `ticket numbers` START WITH 1000 INCREMENT BY 7 CACHE 10 CYCLE;
DO NEXTVAL(`ticket numbers`);
CREATE SEQUENCE countdown START WITH -5 MINVALUE -1000 MAXVALUE -1 INCREMENT BY -5 NOCACHE;
DO NEXTVAL(countdown);

-- Every column type that Django has on MariaDB, and those that it has not.
CREATE TABLE every_type (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  auto_small SMALLINT UNSIGNED NOT NULL DEFAULT 65535,
  integer_field INTEGER, big BIGINT, small SMALLINT, positive INTEGER UNSIGNED, positive_big BIGINT UNSIGNED,
  boolean_field BOOL, decimal_field DECIMAL(65, 30), float_field DOUBLE PRECISION,
  char_field VARCHAR(255), text_field LONGTEXT, binary_field LONGBLOB,
  date_field DATE, time_field TIME(6), datetime_field DATETIME(6), duration BIGINT,
  json_field JSON, ip CHAR(39), uuid_char CHAR(32), uuid_field UUID, slug VARCHAR(50), url VARCHAR(200),
  file VARCHAR(100), stamp TIMESTAMP(6) NULL, year_field YEAR, bit_field BIT(64), bit_one BIT(1),
  enum_field ENUM('a', 'b''c', 'ö', ''), set_field SET('x', 'y', 'z'), inet INET6,
  bin BINARY(4), varbin VARBINARY(300), tiny TINYINT, medium MEDIUMINT, tinytext_field TINYTEXT,
  latin VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_german2_ci,
  case_sensitive VARCHAR(20) COLLATE utf8mb4_bin,
  shape GEOMETRY, place POINT, area POLYGON
) AUTO_INCREMENT = 4711;
INSERT INTO every_type VALUES
  (1, 0, -2147483648, -9223372036854775808, -32768, 0, 0, FALSE,
   -99999999999999999999999999999999999.999999999999999999999999999999, -1.7976931348623157e308,
   '', '', '', '1000-01-01', '-838:59:59.000000', '1000-01-01 00:00:00.000000', -1, '{}', '::1',
   '00000000000000000000000000000000', '00000000-0000-0000-0000-000000000000', '', '', '', '1970-01-01 00:00:01.000001',
   1901, b'0', b'0', '', '', '::', 0x00000000, '', -128, -8388608, '', 'ß', 'A', POINT(0, 0), POINT(-1.5, 2.25),
   ST_GeomFromText('POLYGON((0 0,10 0,10 10,0 10,0 0),(1 1,2 1,2 2,1 1))')),
  (4711, 65535, 2147483647, 9223372036854775807, 32767, 4294967295, 18446744073709551615, TRUE,
   99999999999999999999999999999999999.999999999999999999999999999999, 2.2250738585072014e-308,
   CONCAT('line one\nline two\r\nback\\slash ''quoted'' "double" \t tab \0 nul \Z sub ', '🐘 Ünïcödé'),
   CONCAT(REPEAT('a\0\r\n\\', 1000), '-- Dump completed\nDELIMITER ;;\nUSE mysql;\n'), NULL,
   '9999-12-31', '838:59:59.999999', '9999-12-31 23:59:59.999999', 9223372036854775807,
   '{"a": [1, 2.5, null, true, "\\u0000 \\" \\n 🐘"], "": {}}', NULL, REPEAT('f', 32),
   'ffffffff-ffff-ffff-ffff-ffffffffffff', 'a-b', 'https://example.com/?a=%20&b=1', 'x/y.png',
   '2038-01-19 03:14:07.999999', 2155, ~0, b'1', 'b''c', 'x,z', 'ffff::1', 0xff00fe01, NULL, 127, 8388607,
   'tiny', 'ÄÖÜ', 'a', ST_GeomFromText('GEOMETRYCOLLECTION(POINT(1 1),LINESTRING(0 0,1 1))'), NULL, NULL),
  (4712, 1, NULL, NULL, NULL, NULL, NULL, NULL, 0.1, 0.1, 'NULL', 'NULL', 'NULL', NULL, NULL, NULL, NULL, NULL, NULL,
   NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
   NULL, NULL, NULL);
SET sql_mode = '';
INSERT INTO every_type (date_field, datetime_field, stamp) VALUES ('0000-00-00', '2024-00-00 00:00:00', 0);
SET sql_mode = DEFAULT;

CREATE TABLE every_byte (id INTEGER PRIMARY KEY, one VARBINARY(1), run LONGBLOB, word LONGTEXT);
INSERT INTO every_byte
  SELECT seq, UNHEX(LPAD(HEX(seq), 2, '0')), REPEAT(UNHEX(LPAD(HEX(seq), 2, '0')), 300), CHAR(seq USING latin1)
  FROM seq_0_to_255;

CREATE TABLE generated_columns (
  id INTEGER NOT NULL AUTO_INCREMENT PRIMARY KEY,
  price DECIMAL(10, 2) NOT NULL,
  with_tax DECIMAL(12, 4) AS (price * 1.19) STORED,
  doubled DECIMAL(12, 2) AS (price * 2) VIRTUAL,
  document JSON CHECK (JSON_VALID(document)),
  title VARCHAR(100) AS (JSON_VALUE(document, '$.title')) PERSISTENT,
  secret INTEGER INVISIBLE DEFAULT 42,
  ticket BIGINT DEFAULT NEXTVAL(`ticket numbers`),
  made DATETIME DEFAULT (CURRENT_TIMESTAMP + INTERVAL 1 DAY),
  INDEX (with_tax), INDEX by_title (title), INDEX (doubled), CHECK (price >= 0)
);
INSERT INTO generated_columns (price, document, secret, made) VALUES
  (9.99, '{"title": "one"}', 7, '2024-02-29 12:00:00'), (0, '{"title": null}', NULL, NULL);
DELETE FROM generated_columns WHERE id = 2;

CREATE TABLE with_history (
  id INTEGER PRIMARY KEY, word VARCHAR(20),
  row_start TIMESTAMP(6) GENERATED ALWAYS AS ROW START, row_end TIMESTAMP(6) GENERATED ALWAYS AS ROW END,
  PERIOD FOR SYSTEM_TIME (row_start, row_end)
) WITH SYSTEM VERSIONING;
INSERT INTO with_history (id, word) VALUES (1, 'first'), (2, 'gone');
UPDATE with_history SET word = 'second' WHERE id = 1;
DELETE FROM with_history WHERE id = 2;
CREATE TABLE with_hidden_history (id INTEGER PRIMARY KEY, word VARCHAR(20)) WITH SYSTEM VERSIONING;
INSERT INTO with_hidden_history VALUES (1, 'before');
UPDATE with_hidden_history SET word = 'after';

-- A cycle of foreign keys, and a table that refers to itself.
CREATE TABLE hen (id INTEGER PRIMARY KEY, egg_id INTEGER, mother_id INTEGER,
  CONSTRAINT hen_mother FOREIGN KEY (mother_id) REFERENCES hen (id) ON DELETE SET NULL);
CREATE TABLE egg (id INTEGER PRIMARY KEY, hen_id INTEGER NOT NULL,
  CONSTRAINT egg_hen FOREIGN KEY (hen_id) REFERENCES hen (id) ON DELETE CASCADE ON UPDATE RESTRICT);
INSERT INTO hen VALUES (1, NULL, NULL), (2, NULL, 1);
INSERT INTO egg VALUES (1, 2), (2, 1);
ALTER TABLE hen ADD CONSTRAINT hen_egg FOREIGN KEY (egg_id) REFERENCES egg (id);
UPDATE hen SET egg_id = 1;

CREATE TABLE indexed (
  id INTEGER, a VARCHAR(200), b TEXT, c INTEGER, place POINT NOT NULL,
  PRIMARY KEY (id, c), UNIQUE only_once (a), INDEX prefix (b(17)), INDEX descending (c DESC, a),
  FULLTEXT words (a, b), SPATIAL INDEX (place), INDEX ignored (b(3)) IGNORED
) ROW_FORMAT = COMPRESSED COMMENT 'it''s indexed; `really`\n-- Dump completed';
INSERT INTO indexed VALUES (1, 'a', 'the quick brown fox', 1, POINT(1, 1)), (2, 'b', NULL, -1, POINT(2, 2));

CREATE TABLE partitioned (id INTEGER NOT NULL, born DATE NOT NULL, PRIMARY KEY (id, born))
  PARTITION BY RANGE (YEAR(born)) SUBPARTITION BY HASH (id) SUBPARTITIONS 2 (
    PARTITION old VALUES LESS THAN (2000), PARTITION young VALUES LESS THAN (2020),
    PARTITION rest VALUES LESS THAN MAXVALUE);
INSERT INTO partitioned SELECT seq, '1990-01-01' + INTERVAL seq MONTH FROM seq_1_to_500;

CREATE TABLE old_engine (id INTEGER AUTO_INCREMENT PRIMARY KEY, word VARCHAR(20)) ENGINE = MyISAM;
INSERT INTO old_engine (word) VALUES ('one'), ('two');
CREATE TABLE aria_engine (id INTEGER) ENGINE = Aria TRANSACTIONAL = 1;
INSERT INTO aria_engine VALUES (1);

-- Names.
CREATE TABLE `quoted ``name``. with "everything" 'in' it; é ß 漢字 %s --` (
  `col``umn . é` INTEGER, `select` INTEGER, `ключ` VARCHAR(20), `-- Dump completed` INTEGER, `100%` INTEGER
);
INSERT INTO `quoted ``name``. with "everything" 'in' it; é ß 漢字 %s --` VALUES (1, 2, 'слово', 4, 5);
CREATE TABLE empty_table (id INTEGER AUTO_INCREMENT PRIMARY KEY) AUTO_INCREMENT = 99;
CREATE TABLE `where` (`order` INTEGER);
CREATE TABLE latin_table (word VARCHAR(20)) CHARACTER SET latin1;
INSERT INTO latin_table VALUES ('Grüße');

DELIMITER //
CREATE FUNCTION plus_one(x INTEGER) RETURNS INTEGER DETERMINISTIC COMMENT 'it''s simple'
BEGIN
  -- a comment that must survive
  /* and this
USE nowhere;
  one */ # and this
  RETURN x + 1;
END//
CREATE PROCEDURE `fill é ``it```(IN how_many INTEGER, OUT done INTEGER) MODIFIES SQL DATA SQL SECURITY INVOKER
BEGIN
  DECLARE text TEXT DEFAULT 'DELIMITER ; \\ ; // \r\n 🐘';
  SET done = 0;
  WHILE done < how_many DO
    INSERT INTO empty_table VALUES (NULL);
    SET done = done + 1;
  END WHILE;
END//
CREATE AGGREGATE FUNCTION last_of(x INTEGER) RETURNS INTEGER
BEGIN
  DECLARE result INTEGER DEFAULT 0;
  DECLARE CONTINUE HANDLER FOR NOT FOUND RETURN result;
  LOOP FETCH GROUP NEXT ROW; SET result = x; END LOOP;
END//
CREATE TRIGGER hen_before BEFORE INSERT ON hen FOR EACH ROW
BEGIN
  IF NEW.id < 0 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no; never'; END IF;
END//
CREATE TRIGGER hen_before_too BEFORE INSERT ON hen FOR EACH ROW FOLLOWS hen_before SET NEW.id = plus_one(NEW.id) - 1//
CREATE TRIGGER hen_first BEFORE INSERT ON hen FOR EACH ROW PRECEDES hen_before SET @hen = NEW.id//
CREATE TRIGGER `old ``trigger``` AFTER DELETE ON old_engine FOR EACH ROW INSERT INTO aria_engine VALUES (OLD.id)//
CREATE EVENT `busy event` ON SCHEDULE EVERY 1 SECOND ON COMPLETION PRESERVE ENABLE COMMENT 'it''s ENABLE DO busy' DO
BEGIN
  INSERT INTO fired VALUES (NOW(6));
END//
CREATE EVENT sleeping ON SCHEDULE AT '2037-01-01 00:00:00' DISABLE DO DELETE FROM fired//
SET sql_mode = 'ORACLE'//
CREATE PACKAGE tools AS FUNCTION two RETURN INTEGER; END//
CREATE PACKAGE BODY tools AS FUNCTION two RETURN INTEGER AS BEGIN RETURN 2; END; END//
SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'//
CREATE PROCEDURE other_mode() SELECT "id", 'a\' FROM "hen"//
SET sql_mode = DEFAULT//
DELIMITER ;
CREATE TABLE fired (at DATETIME(6));

CREATE VIEW a_view_on_views AS SELECT 1 AS one;
CREATE ALGORITHM = MERGE SQL SECURITY INVOKER VIEW cheap AS
  SELECT id, price FROM generated_columns WHERE price < 100 WITH CASCADED CHECK OPTION;
CREATE VIEW `view ``é`` %` AS SELECT h.id, plus_one(e.id) AS `next é` FROM hen h JOIN egg e ON e.hen_id = h.id;
CREATE OR REPLACE VIEW a_view_on_views AS
  SELECT c.price, v.`next é`, n.one FROM cheap c, `view ``é`` %` v, (SELECT 'Grüße 🐘' AS one) n;
CREATE VIEW history_view AS SELECT * FROM with_history FOR SYSTEM_TIME ALL;
