-- a customer moves house, writes a review, comes and goes
\set customer random(1, :customers)
\set product random(1, 2000)
\set stars random(1, 5)
\set coupon random(1, 500)
BEGIN;
UPDATE address SET lines[1] = 'New Street :stars', zip = NULL WHERE customer_id = :customer;
UPDATE customer SET phones = phones[1:2] || ARRAY['+33 :stars'], newsletter = NOT newsletter WHERE id = :customer;
INSERT INTO review (product_id, customer_id, stars, body) VALUES (:product, :customer, :stars, repeat('Fine. ', :stars * 20))
	ON CONFLICT (product_id, customer_id) DO UPDATE SET stars = EXCLUDED.stars, body = EXCLUDED.body || review.body;
COMMIT;
UPDATE coupon SET used = used + 1 WHERE code = 'C:coupon';
UPDATE "Gift Card" SET "Balance" = "Balance" - 1 WHERE "Card No" = 'GC-:coupon' AND "Balance" > 0;
