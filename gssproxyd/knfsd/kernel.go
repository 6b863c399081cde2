package knfsd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gssproxyd/mech/krb5/etype"
)

// What the kernel knows.
const (
	kernelRPC    = "/proc/net/rpc"
	kernelSocket = "/var/run/gssproxy.sock"
)

// flag is what the kernel has chosen, as its file use-gss-proxy says. There is none
// (fs.ErrNotExist) where the module auth_rpcgss is not loaded; what is none of these is a daemon's
// registration.
type flag string

const (
	undecided  flag = "-1" // no daemon has registered, and no client has come
	rpcSvcgssd flag = "0"  // a client came first: no daemon can register until the module is unloaded
	registered flag = "1"
)

func flagFile(dir string) string { return filepath.Join(dir, "use-gss-proxy") }

func readFlag(dir string) (flag, error) {
	text, err := os.ReadFile(flagFile(dir))
	return flag(strings.TrimSpace(string(text))), err
}

// errTooLate is what is wrong when the kernel has chosen rpc.svcgssd.
var errTooLate = errors.New("a client came before this daemon was ready, and the kernel chose rpc.svcgssd until auth_rpcgss is unloaded. " +
	"Stop nfs-server and everything mounted with Kerberos, modprobe -r nfsd rpcsec_gss_krb5 auth_rpcgss (or restart the machine), " +
	"restart this daemon, and then start nfs-server")

// Describe says what the kernel has chosen, whoever asks, and whether that is well.
func Describe() (text string, well bool) { return describe(kernelRPC) }

func describe(dir string) (text string, well bool) {
	switch chosen, err := readFlag(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return "its module auth_rpcgss is not loaded; the daemon registers when it is", true
	case err != nil:
		return fmt.Sprintf("not known: %v; ask as root", err), false
	case chosen == undecided:
		return "undecided (-1): no daemon has registered yet, and no client has come; start gssproxyd before nfs-server", false
	case chosen == rpcSvcgssd:
		return "NOT registered (0): " + errTooLate.Error(), false
	default:
		return fmt.Sprintf("registered: the daemon at %s (%s)", kernelSocket, chosen), true
	}
}

// register writes the flag. It returns when the kernel has connected, which may take seconds.
func register(dir string) error {
	f, err := os.OpenFile(flagFile(dir), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write([]byte(registered))
	return err
}

// listening reports whether anybody listens where the kernel connects to.
func listening() bool {
	c, err := net.DialTimeout("unix", kernelSocket, time.Second)
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED)
}

// readEnctypes reads the encryption types that the kernel says it knows, none where it does not
// say.
func readEnctypes(dir string) []etype.ID {
	text, err := os.ReadFile(filepath.Join(dir, "gss_krb5_enctypes"))
	if err != nil {
		return nil // a kernel before 6.2
	}
	return parseEnctypes(string(text))
}

// parseEnctypes reads numbers separated by commas, as the kernel writes them.
func parseEnctypes(text string) (list []etype.ID) {
	for _, s := range strings.FieldsFunc(text, func(c rune) bool { return c < '0' || c > '9' }) {
		if id, err := strconv.ParseInt(s, 10, 32); err == nil {
			list = append(list, etype.ID(id))
		}
	}
	return list
}
