-- a customer looks around: products, prices, stock, her orders and what she paid.
-- Behind a pool each transaction says whose it is, so that all of one customer's are answered by the same side
\set customer random(1, :customers)
\set product random(1, 2000)
\set order random(1, :orders)
BEGIN;
SET LOCAL cutover.route_key = 'customer :customer';
SELECT p.name, p.gross, c.name AS category FROM product p JOIN product_category pc ON pc.product_id = p.id JOIN category c ON c.id = pc.category_id WHERE p.id = :product;
SELECT sum(quantity) AS in_stock FROM stock WHERE product_id = :product;
SELECT id, ordered_at, status, total FROM orders WHERE customer_id = :customer ORDER BY ordered_at DESC LIMIT 5;
SELECT account, sum(amount) AS booked FROM ledger WHERE order_id = :order GROUP BY account ORDER BY account;
COMMIT;
