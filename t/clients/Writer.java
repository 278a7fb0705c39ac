/*
 * Writer - an application behind JDBC: one connection, one row after the other,
 * and a new connection whenever the server refuses one.
 *
 * java -cp postgresql.jar Writer.java URL USER: writes rows (n) into table
 * written until its input ends.  For each it prints "kept N" once the server
 * has confirmed it, for each refusal "refused SQLSTATE", and how long it took
 * from the refusal to the next row: "back MILLISECONDS".
 */
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.SQLException;

public class Writer
{
	public static void main(String[] args) throws Exception
	{
		Connection connection = null;
		PreparedStatement insert = null;
		long refused = 0;

		for (int n = 1; System.in.available() == 0; )
		{
			try
			{
				if (connection == null)
				{
					connection = DriverManager.getConnection(args[0], args[1], "");
					insert = connection.prepareStatement("INSERT INTO written (n, via) VALUES (?, 'jdbc')");
				}
				insert.setInt(1, n);
				insert.executeUpdate();
				System.out.println("kept " + n);
				n++;
				if (refused != 0)
					System.out.println("back " + (System.nanoTime() - refused) / 1000000);
				refused = 0;
			}
			catch (SQLException e)
			{
				if (refused == 0)
					refused = System.nanoTime();
				System.out.println("refused " + e.getSQLState() + " " + e.getMessage().replace('\n', ' '));
				if (connection != null)
					try { connection.close(); } catch (SQLException ignored) { }
				connection = null;
				Thread.sleep(5);
			}
			Thread.sleep(1);
		}
		System.out.println("end");
	}
}
