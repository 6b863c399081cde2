package unit

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// entries are those of the journal that match, as journalctl shows them.
func entries(t *testing.T, since time.Time, matches ...string) (all []map[string]any) {
	t.Helper()
	args := append([]string{"--no-pager", "--output=json", "--unit=gssproxyd", "--since=@" + strconv.FormatFloat(float64(since.UnixMicro())/1e6, 'f', 6, 64)}, matches...)
	for _, args := range [][]string{{"--sync"}, args} {
		out, err := exec.Command("journalctl", args...).Output()
		if err != nil {
			t.Fatalf("journalctl %q: %v", args, err)
		}
		for line := range bytes.Lines(out) {
			var e map[string]any
			check(t, json.Unmarshal(line, &e))
			all = append(all, e)
		}
	}
	return all
}

// Under the unit what is logged has its fields in the journal, by which it is found, and reads as
// text nevertheless.
func TestJournal(t *testing.T) {
	since := time.Now()
	r := start(t, nil)
	if err := program(t, r, lab.Nobody, defaultSocket).Acquire(service); err == nil {
		t.Error("somebody else accepts for host/")
	}
	found := entries(t, since, "GSSPROXYD_REASON=no-service-for-uid")
	if len(found) == 0 {
		t.Fatalf("no refusal is found by its reason; the journal has: %v", entries(t, since))
	}
	daemon := property(t, "MainPID")
	for field, want := range map[string]string{
		"GSSPROXYD_UID": "65534", "GSSPROXYD_SOCKET": defaultSocket, "PRIORITY": "4", "SYSLOG_IDENTIFIER": "gssproxyd", "SYSLOG_FACILITY": "3",
		"_TRANSPORT": "journal", "_PID": daemon, "_UID": strconv.Itoa(account(t, "gssproxyd")), "_SYSTEMD_UNIT": "gssproxyd.service",
	} {
		if found[0][field] != want {
			t.Errorf("%s is %v, not %s", field, found[0][field], want)
		}
	}
	if text, _ := found[0]["MESSAGE"].(string); !strings.HasPrefix(text, "connection closed: no service matches the caller reason=no-service-for-uid ") || !strings.Contains(text, " uid=65534") {
		t.Errorf("the text is %q", text)
	}
	started := entries(t, since, "MESSAGE=Initialization complete.", "_PID="+daemon)
	if len(started) != 1 || started[0]["PRIORITY"] != "6" {
		t.Errorf("that it serves is there as %v", started)
	}
	for _, e := range entries(t, since, "_PID="+daemon, "_TRANSPORT=stdout") {
		t.Errorf("a line without fields: %v", e["MESSAGE"])
	}

	// What the command line asks for goes before what the standard error is.
	since = time.Now()
	const dropIn = "/etc/systemd/system/gssproxyd.service.d/json.conf"
	write(t, dropIn, "[Service]\nExecStart=\nExecStart=/usr/sbin/gssproxyd -i --run-as-user=gssproxyd --log-format=json\n")
	t.Cleanup(func() { os.Remove(dropIn) })
	systemctl(t, "daemon-reload")
	systemctl(t, "restart", "gssproxyd")
	lines := 0
	for _, e := range entries(t, since, "_PID="+property(t, "MainPID"), "_TRANSPORT=stdout") {
		var line struct{ Msg string }
		if text, _ := e["MESSAGE"].(string); json.Unmarshal([]byte(text), &line) == nil && line.Msg == "Initialization complete." {
			lines++
		}
	}
	if lines != 1 {
		t.Errorf("with JSON asked for it says %d times that it serves", lines)
	}
}
