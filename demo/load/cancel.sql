-- an order of the past is cancelled: triggers bring goods and money back
\set order random(1, :orders)
BEGIN;
UPDATE orders SET status = 'cancelled' WHERE id = :order AND status <> 'cancelled';
DELETE FROM shipment WHERE order_id = :order;
UPDATE payment SET amount = 0, detail = detail || '{"refund": true}' WHERE order_id = :order;
COMMIT;
