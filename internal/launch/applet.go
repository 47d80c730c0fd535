package launch

import (
	"fmt"
	"strings"
)

// What tells macOS who opens the links is an app: a link is an Apple event, and
// no argument of a program. Here are the texts that the app is made of.

// The app, in the person's own folder of applications, and its name for macOS.
const (
	appletDir = "sft-url.app"
	appletID  = "local.sft.url-handler"
)

// appletScript is the app's program, in AppleScript. It has no character that
// is not ASCII, since osacompile guesses what others are meant to be, and puts
// nothing of a link into a command line that is not quoted. What sft says when
// it fails is shown.
func appletScript(program string) []byte {
	return []byte(`on open location theLink
	set thePath to ` + appleText(program) + `
	try
		do shell script (quoted form of thePath) & " open-url -- " & (quoted form of theLink)
	on error theReason
		activate
		display alert "sft" message theReason as critical
	end try
end open location
`)
}

// appleText is an expression of AppleScript whose value is s.
func appleText(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r < ' ' || r > '~':
			fmt.Fprintf(&b, `" & (character id %d) & "`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// appletPlist is the app's Info.plist. It takes the place of osacompile's,
// whose program for a script is called applet; LSUIElement keeps it out of the
// Dock.
func appletPlist() []byte {
	var schemes string
	for _, s := range LinkSchemes {
		schemes += "\t\t\t\t<string>" + s + "</string>\n"
	}
	return []byte(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>CFBundleIdentifier</key>
	<string>` + appletID + `</string>
	<key>CFBundleName</key>
	<string>sft</string>
	<key>CFBundleExecutable</key>
	<string>applet</string>
	<key>CFBundlePackageType</key>
	<string>APPL</string>
	<key>CFBundleSignature</key>
	<string>aplt</string>
	<key>CFBundleInfoDictionaryVersion</key>
	<string>6.0</string>
	<key>CFBundleShortVersionString</key>
	<string>1.0</string>
	<key>LSUIElement</key>
	<true/>
	<key>CFBundleURLTypes</key>
	<array>
		<dict>
			<key>CFBundleURLName</key>
			<string>` + appletID + `</string>
			<key>CFBundleTypeRole</key>
			<string>Viewer</string>
			<key>CFBundleURLSchemes</key>
			<array>
` + schemes + `			</array>
		</dict>
	</array>
</dict>
</plist>
`)
}

// terminalScript is a script of sh that becomes the program of argv, once it
// has removed itself.
func terminalScript(argv []string) []byte {
	line := "exec"
	for _, word := range argv {
		line += " '" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return []byte("#!/bin/sh\nrm -f -- \"$0\"\n" + line + "\n")
}
