/*
 * Drivers - an application behind JDBC that reads in all the ways that it has.
 *
 * java -cp postgresql.jar Drivers.java URL USER SIDE: with cutover.read_from =
 * SIDE prints a line for each row, "STEP VALUES".  Every query's first column
 * says who answered it, which goes to a line of its own, "side STEP SIDE".
 */
import java.sql.Array;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.time.OffsetDateTime;
import java.util.Arrays;
import java.util.TreeSet;
import java.util.UUID;

public class Drivers
{
	static final String WHO = "(SELECT side FROM mark WHERE id = 1)";
	static final String ALL = "SELECT " + WHO + ", * FROM item WHERE id = ? OR grp = ? AND cost > ? ORDER BY id LIMIT 5";

	/* prints what is left of a result */
	static int show(String step, ResultSet rows) throws SQLException
	{
		TreeSet<String> sides = new TreeSet<>();
		int n = 0;

		for (; rows.next(); n++)
		{
			StringBuilder line = new StringBuilder(step);
			sides.add(rows.getString(1));
			for (int i = 2; i <= rows.getMetaData().getColumnCount(); i++)
			{
				Object o = rows.getObject(i);
				if (o instanceof byte[])
					o = Arrays.toString((byte[]) o);
				line.append(" | ").append(rows.getMetaData().getColumnTypeName(i)).append(' ').append(o);
				/* as text, too; of bytes that is where Java has them */
				if (!rows.getMetaData().getColumnTypeName(i).equals("bytea"))
					line.append(' ').append(rows.getString(i));
			}
			System.out.println(line);
		}
		System.out.println("side " + step + " " + String.join("+", sides));
		rows.close();
		return n;
	}

	/* more often than prepareThreshold, so that the server has it prepared and values come in binary */
	static void prepared(Connection c, String step) throws SQLException
	{
		try (PreparedStatement s = c.prepareStatement(ALL))
		{
			for (int i = 1; i <= 12; i++)
			{
				s.setInt(1, i);
				s.setLong(2, i % 7);
				s.setBigDecimal(3, new java.math.BigDecimal("300.25"));
				show(step + i, s.executeQuery());
			}
		}
	}

	/* the simple protocol has no binary parameters */
	static void parameters(Connection c, boolean simple) throws SQLException
	{
		try (PreparedStatement s = c.prepareStatement("SELECT " + WHO + ", id, ?::text FROM item WHERE id = ANY (?) AND uid <> ? AND at < ?"
			+ " AND flag IS NOT DISTINCT FROM ? AND data <> ?::bytea ORDER BY id"))
		{
			Array ids = c.createArrayOf("int4", new Integer[] { 1, 2, 3, 4, null, 1001 });
			for (int i = 1; i <= 8; i++)
			{
				s.setString(1, i % 2 == 0 ? null : "ü'\\" + i);
				s.setArray(2, ids);
				s.setObject(3, new UUID(0, 1));
				s.setObject(4, OffsetDateTime.parse("2027-01-01T00:00:00+00:00"));
				s.setBoolean(5, i % 2 == 0);
				if (simple)
					s.setString(6, "\\x0005");
				else
					s.setBytes(6, new byte[] { 0, 5 });
				show("parameters" + i, s.executeQuery());
			}
		}
	}

	/* two results that are fetched in parts, in turns, and one that is left half read */
	static void cursors(Connection c) throws SQLException
	{
		c.setAutoCommit(false);
		try (PreparedStatement a = c.prepareStatement("SELECT " + WHO + ", id, name, tags FROM item ORDER BY id");
			PreparedStatement b = c.prepareStatement("SELECT " + WHO + ", id, doc FROM item WHERE id > ? ORDER BY id DESC");
			PreparedStatement left = c.prepareStatement("SELECT " + WHO + ", i.id, g.id FROM item i, item g ORDER BY 2, 3"))
		{
			a.setFetchSize(7);
			b.setFetchSize(11);
			b.setInt(1, 100);
			left.setFetchSize(50);
			for (int round = 1; round <= 6; round++)
			{
				ResultSet ra = a.executeQuery(), rb = b.executeQuery(), rl = left.executeQuery();
				for (int i = 0; i < 120; i++)
				{
					ra.next();
					rb.next();
					rl.next();
					System.out.println("turns " + ra.getString(2) + ra.getString(3) + ra.getArray(4) + " " + rb.getString(2) + rb.getString(3) + " " + rl.getInt(3));
				}
				rl.close();
				System.out.println("cursor rows " + show("cursor_a" + round, ra) + " " + show("cursor_b" + round, rb));
				c.commit();
			}
		}
		c.setAutoCommit(true);
	}

	/* an error within a transaction, and its savepoint */
	static void errors(Connection c) throws SQLException
	{
		c.setAutoCommit(false);
		for (int i = 1; i <= 7; i++)
		{
			try (PreparedStatement s = c.prepareStatement("SELECT " + WHO + ", 10 / (id - ?) FROM item WHERE id < 9 ORDER BY id"))
			{
				Savepoint p = c.setSavepoint();
				s.setInt(1, 5);
				try
				{
					show("none", s.executeQuery());
				}
				catch (SQLException e)
				{
					System.out.println("error " + e.getSQLState());
					c.rollback(p);
				}
				s.setInt(1, 50);
				show("after_error" + i, s.executeQuery());
			}
			c.commit();
		}
		c.setAutoCommit(true);
	}

	/* a batch and its keys, then what the session itself has written */
	static void batches(Connection c) throws SQLException
	{
		for (int round = 1; round <= 3; round++)
		{
			try (PreparedStatement s = c.prepareStatement("INSERT INTO note (body) VALUES (?)", Statement.RETURN_GENERATED_KEYS))
			{
				for (int i = 1; i <= 20; i++)
				{
					s.setString(1, "round " + round + " note " + i);
					s.addBatch();
				}
				int[] done = s.executeBatch();
				int keys = 0;
				for (ResultSet k = s.getGeneratedKeys(); k.next(); )
					keys++;
				System.out.println("batch " + Arrays.toString(done) + " keys " + keys);
			}
			try (Statement s = c.createStatement(); ResultSet r = s.executeQuery("SELECT count(*), max(body) FROM note"))
			{
				r.next();
				System.out.println("own " + r.getString(1) + " " + r.getString(2));
			}
			try (Statement s = c.createStatement())
			{
				s.addBatch("UPDATE note SET body = body || '.'");
				s.addBatch("DELETE FROM note WHERE body LIKE '%note 1%'");
				System.out.println("batch " + Arrays.toString(s.executeBatch()));
			}
		}
		try (Statement s = c.createStatement())
		{
			System.out.println("deleted " + s.executeUpdate("DELETE FROM note"));
		}
	}

	public static void main(String[] args) throws Exception
	{
		for (String mode : new String[] { "extended", "simple", "extendedCacheEverything" })
		{
			try (Connection c = DriverManager.getConnection(args[0] + "?preferQueryMode=" + mode, args[1], ""))
			{
				try (Statement s = c.createStatement())
				{
					s.execute("SET cutover.read_from = '" + args[2] + "'");
					prepared(c, mode);
					s.setMaxRows(3);
					show("max_rows", s.executeQuery("SELECT " + WHO + ", id FROM item ORDER BY id"));
				}
				parameters(c, mode.equals("simple"));
				cursors(c);
				c.setTransactionIsolation(Connection.TRANSACTION_REPEATABLE_READ);
				c.setReadOnly(true);
				c.setAutoCommit(false);
				prepared(c, "snapshot");
				c.commit();
				c.setAutoCommit(true);
				c.setReadOnly(false);
				c.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
				errors(c);
				batches(c);
			}
		}
		System.out.println("end");
	}
}
