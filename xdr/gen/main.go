// Command gen writes the Go codecs of package xdr from its .x files, and the C codec of the plugin
// for MIT's libgssapi. It runs in the directory of package xdr: go generate ./xdr
package main

import (
	"fmt"
	"os"
)

// jobs lists what is generated: from which file, to which, and by what.
var jobs = []struct {
	from, to string
	write    func(*file) ([]byte, error)
}{
	{"gss_proxy.x", "gss_proxy.go", inGo("gssx_")},
	{"rpc.x", "rpc.go", inGo("rpc_")},
	{"admin.x", "admin.go", adminGo},
	{"pods.x", "pods.go", inGo("")},
	{"rpcsec_gss.x", "rpcsec_gss.go", inGo("")},
	{"kadm5.x", "kadm5.go", kadm5Go},
	{"gen/testdata/sample.x", "sample_test.go", inGo("")},
	{"gss_proxy.x", "../interposer/mechglue/gss_proxy_xdr.h", plugin.header},
	{"gss_proxy.x", "../interposer/mechglue/gss_proxy_xdr.c", plugin.source},
}

// plugin is what the plugin calls, and what it echoes.
var plugin = subset{
	procs: []string{"GSSX_GET_CALL_CONTEXT", "GSSX_IMPORT_AND_CANON_NAME", "GSSX_ACQUIRE_CRED", "GSSX_INIT_SEC_CONTEXT", "GSSX_ACCEPT_SEC_CONTEXT"},
	raw:   []string{"gssx_cred", "gssx_ctx"},
}

// inGo returns what writes a file in Go, where names lose prefix.
func inGo(prefix string) func(*file) ([]byte, error) {
	return func(f *file) ([]byte, error) { return (&writer{prefix: prefix}).write(f) }
}

// adminGo writes the administrator's program, whose results are printed as JSON too.
func adminGo(f *file) ([]byte, error) { return (&writer{program: "Admin", json: true}).write(f) }

// kadm5Go writes the program of kadmind.
func kadm5Go(f *file) ([]byte, error) { return (&writer{program: "Kadm5"}).write(f) }

func main() {
	for _, j := range jobs {
		src, err := generate(j.from, j.write)
		if err == nil {
			err = os.WriteFile(j.to, src, 0o666)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "gen:", err)
			os.Exit(1)
		}
	}
}

// generate returns what write makes of the .x file at path.
func generate(path string, write func(*file) ([]byte, error)) ([]byte, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := parse(path, string(src))
	if err != nil {
		return nil, err
	}
	return write(f)
}
