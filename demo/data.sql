-- Fill the shop: psql -v orders=200000.  The same rows every time, less times
-- and random identifiers.  Triggers and checks of foreign keys rest meanwhile.
SET session_replication_role = replica;
SET synchronous_commit = off;
BEGIN;

INSERT INTO customer (email, name, phones, newsletter, created_at, updated_at)
SELECT format('customer%s@example.com', i),
	(ARRAY['Ada','Björn','Chloé','Dana','Émile','Fatima','Günter','Hana'])[i % 8 + 1] || ' ' || initcap(substr(md5(i::text), 1, 7)),
	CASE WHEN i % 3 = 0 THEN '{}' ELSE ARRAY['+49 30 ' || 100000 + i] END,
	CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END,
	now() - i % 900 * interval '1 day', now() - i % 90 * interval '1 day'
FROM generate_series(1, :orders / 10) i;

INSERT INTO address (customer_id, lines, zip, city, country)
SELECT i, ARRAY[format('%s Street %s', initcap(substr(md5(i::text), 3, 6)), i % 200), NULLIF('Floor ' || i % 5, 'Floor 0')],
	lpad((i * 7 % 100000)::text, 5, '0'), (ARRAY['Berlin','Kraków','Lyon','São Paulo','東京'])[i % 5 + 1], (ARRAY['DE','PL','FR','BR','JP'])[i % 5 + 1]
FROM generate_series(1, :orders / 10) i;

INSERT INTO category (id, parent_id, name)
SELECT i, CASE WHEN i > 10 THEN (i - 11) / 9 + 1 END, 'Category ' || i FROM generate_series(1, 100) i;
SELECT setval('category_id_seq', 100) \g /dev/null

INSERT INTO product (sku, name, description, size, attributes, picture, net, updated_at)
SELECT 'SKU-' || lpad(i::text, 6, '0'), 'Product ' || substr(md5(i::text), 1, 6),
	-- some descriptions are long enough to be stored out of line
	CASE WHEN i % 20 = 0 THEN (SELECT string_agg(md5((i * 1000 + j)::text), ' ') FROM generate_series(1, 150) j) ELSE 'Good.' END,
	(i % 500, i % 300, i % 200)::dimension,
	jsonb_build_object('colour', (ARRAY['red','green','blue'])[i % 3 + 1], 'weight', i % 5000, 'parts', jsonb_build_array(i, null, i / 7.0)),
	CASE WHEN i % 10 = 0 THEN decode(repeat(md5(i::text), i % 300), 'hex') END,
	(i % 20000) / 100.0 + 1, now() - i % 90 * interval '1 day'
FROM generate_series(1, 2000) i;

INSERT INTO product_category SELECT i, 11 + (i + j * 13) % 90 FROM generate_series(1, 2000) i, generate_series(1, 2) j;

INSERT INTO special_price (product_id, valid, net)
SELECT i, daterange(CURRENT_DATE + j * 30, CURRENT_DATE + j * 30 + 10), i % 100 FROM generate_series(1, 2000, 5) i, generate_series(-3, 3) j;

INSERT INTO warehouse VALUES (1, 'North', '(53.5,10)', '06:00', '10.0.1.1'), (2, 'South', '(48.1,11.6)', '07:30', '10.0.2.1/24'), (3, 'West', '(50.9,6.9)', '05:15', NULL);
INSERT INTO stock SELECT w, p, 1000000 FROM generate_series(1, 3) w, generate_series(1, 2000) p;

INSERT INTO coupon (code, valid, "percent off")
SELECT 'C' || i, tstzrange(now() - interval '1 year', CASE WHEN i % 2 = 0 THEN now() + interval '1 year' END), i % 30 FROM generate_series(1, 500) i;

INSERT INTO orders (id, ordered_at, customer_id, status, coupon, updated_at)
SELECT i, now() - (:orders - i) * (interval '360 days' / :orders), i * 31::bigint % (:orders / 10) + 1,
	(ARRAY['delivered','delivered','shipped','paid','cancelled'])[i % 5 + 1]::order_status,
	CASE WHEN i % 11 = 0 THEN 'C' || i % 500 + 1 END, now() - (:orders - i) * (interval '360 days' / :orders)
FROM generate_series(1, :orders) i;
SELECT setval('orders_id_seq', :orders) \g /dev/null

INSERT INTO order_line (order_id, ordered_at, line_no, product_id, warehouse_id, quantity, price)
SELECT o.id, o.ordered_at, n, p.id, o.id % 3 + 1, (o.id + n) % 4 + 1, p.gross
FROM orders o, generate_series(1, 3) n, product p
WHERE n <= o.id % 3 + 1 AND p.id = (o.id * 17 + n * 101) % 2000 + 1;

UPDATE orders o SET total = l.total FROM (SELECT order_id, sum(total) AS total FROM order_line GROUP BY 1) l WHERE l.order_id = o.id;

INSERT INTO payment (order_id, ordered_at, amount, paid_at, detail)
SELECT id, ordered_at, total, ordered_at + interval '1 hour', jsonb_build_object('method', CASE WHEN id % 2 = 0 THEN 'card' ELSE 'transfer' END)
FROM orders WHERE status <> 'new';

INSERT INTO shipment (order_id, ordered_at, parcels, sent_at, took)
SELECT id, ordered_at, ARRAY[(id % 400, 200, 100)::dimension, (id % 100, NULL, 50)::dimension], ordered_at + interval '1 day', id % 72 * interval '1 hour'
FROM orders WHERE status IN ('shipped', 'delivered');

INSERT INTO ledger (order_id, account, amount)
SELECT o.id, a.account, CASE a.account WHEN 'cash' THEN o.total WHEN 'revenue' THEN -round(o.total / 1.19, 2) ELSE -(o.total - round(o.total / 1.19, 2)) END
FROM orders o, (SELECT unnest(enum_range(NULL::account)) AS account) a;

INSERT INTO review (product_id, customer_id, stars, body, written_on)
SELECT i % 2000 + 1, i / 2000 * 7 % (:orders / 10) + 1, i % 5 + 1, CASE WHEN i % 4 > 0 THEN repeat('It works. ', i % 40) END, CURRENT_DATE - i % 300
FROM generate_series(1, least(:orders / 5, 2000 * :orders / 80)) i
ON CONFLICT DO NOTHING;

INSERT INTO session SELECT gen_random_uuid(), i, ('10.' || i % 250 || '.' || i % 200 || '.7')::inet, jsonb_build_array(jsonb_build_object('sku', i % 2000)), now() + i % 600 * interval '1 minute'
FROM generate_series(1, :orders / 20) i;

INSERT INTO "Gift Card" SELECT 'GC-' || i, i % 200, NULLIF(i % 10, 0) FROM generate_series(1, 1000) i;

INSERT INTO audit_log SELECT now() - i % 300 * interval '1 day', 'address', 'UPDATE', md5((i % 1000)::text), '{"city": "Bonn"}' FROM generate_series(1, :orders / 20) i;

COMMIT;
ANALYZE;
