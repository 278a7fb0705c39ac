-- goods arrive, and a price changes
\set product random(1, 2000)
\set warehouse random(1, 3)
\set net random(100, 20000)
BEGIN;
UPDATE stock SET quantity = quantity + 10 WHERE warehouse_id = :warehouse AND product_id = :product;
UPDATE product SET net = :net / 100.0, attributes = attributes || '{"seen": :net}' WHERE id = :product;
COMMIT;
