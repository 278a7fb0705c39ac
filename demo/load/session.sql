-- sessions begin, fill their basket, and expire
\set customer random(1, :customers)
\set product random(1, 2000)
BEGIN;
INSERT INTO session VALUES (gen_random_uuid(), :customer, '192.168.0.:client_id', '[]', now() + interval '1 hour') RETURNING token \gset
UPDATE session SET basket = basket || '[{"sku": :product}]' WHERE token = ':token';
COMMIT;
DELETE FROM session WHERE token = (SELECT token FROM session ORDER BY expires LIMIT 1 FOR UPDATE SKIP LOCKED);
