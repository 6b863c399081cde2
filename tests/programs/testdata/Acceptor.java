import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Base64;
import org.ietf.jgss.GSSContext;
import org.ietf.jgss.GSSCredential;
import org.ietf.jgss.GSSException;
import org.ietf.jgss.GSSManager;
import org.ietf.jgss.GSSName;
import org.ietf.jgss.MessageProp;
import org.ietf.jgss.Oid;

/** Accepts a token a line, and says who it is from. */
class Acceptor {
    private static final GSSManager manager = GSSManager.getInstance();

    public static void main(String[] args) throws Exception {
        GSSCredential credential = credential(args[0]);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null;) {
            try {
                GSSContext context = manager.createContext(credential);
                byte[] token = Base64.getDecoder().decode(line);
                token = context.acceptSecContext(token, 0, token.length);
                if (!context.isEstablished()) { // nothing is thrown, whatever the cause
                    credential(args[0]);
                    throw new GSSException(GSSException.FAILURE);
                }
                byte[] hello = "hello".getBytes();
                hello = context.wrap(hello, 0, hello.length, new MessageProp(0, true));
                System.out.println("OK " + context.getSrcName() + " " + base64(token) + " " + base64(hello));
                context.dispose();
            } catch (GSSException e) {
                System.out.println("refused: " + e.toString().replace('\n', ' '));
            }
        }
    }

    private static GSSCredential credential(String service) throws GSSException {
        GSSName name = manager.createName(service, GSSName.NT_HOSTBASED_SERVICE);
        return manager.createCredential(name, GSSCredential.INDEFINITE_LIFETIME, new Oid("1.2.840.113554.1.2.2"),
            GSSCredential.ACCEPT_ONLY);
    }

    private static String base64(byte[] b) {
        return Base64.getEncoder().encodeToString(b);
    }
}
