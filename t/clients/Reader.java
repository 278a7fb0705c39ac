/*
 * Reader - an application behind JDBC that only reads: prepared statements,
 * batches of rows by a cursor, several results at once, types, metadata.
 *
 * java -cp postgresql.jar Reader.java URL USER: prints what it reads from
 * tables item and mark, the same for the same rows.
 */
import java.sql.Array;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;

public class Reader
{
	static void print(ResultSet rows) throws SQLException
	{
		ResultSetMetaData meta = rows.getMetaData();

		while (rows.next())
		{
			StringBuilder line = new StringBuilder();
			for (int i = 1; i <= meta.getColumnCount(); i++)
				line.append(meta.getColumnName(i)).append(':').append(meta.getColumnTypeName(i)).append('=')
					.append(rows.getString(i)).append(' ');
			System.out.println(line);
		}
		rows.close();
	}

	public static void main(String[] args) throws Exception
	{
		Connection connection = DriverManager.getConnection(args[0], args[1], "");

		try (PreparedStatement one = connection.prepareStatement("SELECT * FROM item WHERE id = ?"))
		{
			/* after five executions the driver prepares on the server, and asks for binary results */
			for (int i = 1; i <= 12; i++)
			{
				one.setInt(1, i);
				print(one.executeQuery());
			}
			one.setNull(1, java.sql.Types.INTEGER);
			print(one.executeQuery());
		}
		try (PreparedStatement many = connection.prepareStatement(
				"SELECT id, name, at FROM item WHERE mood = ?::mood AND at >= ? AND tags && ? AND cost BETWEEN ? AND ? ORDER BY id"))
		{
			for (int i = 0; i < 8; i++)
			{
				many.setString(1, i % 2 == 0 ? "ok" : "sad");
				many.setTimestamp(2, Timestamp.valueOf("2026-03-30 00:00:00"));
				many.setArray(3, connection.createArrayOf("text", new String[] {"a1", "a" + i, "a20"}));
				many.setBigDecimal(4, new java.math.BigDecimal("1.00"));
				many.setDouble(5, 100.5);
				print(many.executeQuery());
			}
		}
		connection.setAutoCommit(false);
		try (Statement cursor = connection.createStatement();
			 PreparedStatement inner = connection.prepareStatement("SELECT side FROM mark WHERE id = ?"))
		{
			long sum = 0;
			cursor.setFetchSize(50);	/* rows in portions through a portal */
			ResultSet rows = cursor.executeQuery("SELECT id, cost, tags FROM item ORDER BY id");
			while (rows.next())
			{
				Array tags = rows.getArray(3);
				sum += rows.getInt(1) + (tags == null ? 0 : ((String[]) tags.getArray()).length);
				if (rows.getInt(1) % 60 == 0)
				{
					inner.setInt(1, 1 + rows.getInt(1) % 3);
					print(inner.executeQuery());
				}
			}
			System.out.println("sum " + sum);
		}
		connection.commit();
		try (Statement several = connection.createStatement())
		{
			boolean is_rows = several.execute("SELECT 1 FROM mark WHERE id = 1; SELECT count(*) FROM item; SELECT id FROM item WHERE id < 4 ORDER BY id");
			while (is_rows)
			{
				print(several.getResultSet());
				is_rows = several.getMoreResults();
			}
			several.executeQuery("SELECT 1 / (id - 5) FROM item WHERE id = 5");
		}
		catch (SQLException e)
		{
			System.out.println("error " + e.getSQLState());
		}
		connection.rollback();
		try (Statement scroll = connection.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_READ_ONLY))
		{
			ResultSet rows = scroll.executeQuery("SELECT id, name FROM item ORDER BY id");
			rows.last();
			System.out.println(rows.getRow() + " " + rows.getString(2));
			rows.absolute(7);
			System.out.println(rows.getInt(1));
		}
		connection.commit();
		connection.close();
	}
}
