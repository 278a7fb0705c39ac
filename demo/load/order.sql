-- a customer orders three things and pays
\set customer random(1, :customers)
\set a random(1, 600)
\set b random(601, 1300)
\set c random(1301, 2000)
\set warehouse random(1, 3)
\set coupon random(1, 500)
BEGIN;
INSERT INTO orders (customer_id, coupon) VALUES (:customer, 'C:coupon') RETURNING id AS order_id, ordered_at \gset
INSERT INTO order_line (order_id, ordered_at, line_no, product_id, warehouse_id, quantity, price)
	SELECT :order_id, ':ordered_at', row_number() OVER (ORDER BY id), id, :warehouse, id % 3 + 1, gross FROM product WHERE id IN (:a, :b, :c) ORDER BY id;
UPDATE orders SET status = 'paid', total = (SELECT sum(total) FROM order_line WHERE order_id = :order_id)
	WHERE id = :order_id AND ordered_at = ':ordered_at' RETURNING total \gset
INSERT INTO payment (order_id, ordered_at, amount, detail) VALUES (:order_id, ':ordered_at', :total, '{"method": "card", "client": :client_id}');
INSERT INTO ledger (order_id, account, amount) VALUES
	(:order_id, 'cash', :total), (:order_id, 'revenue', -round(:total / 1.19, 2)), (:order_id, 'tax', -(:total - round(:total / 1.19, 2)));
COMMIT;
