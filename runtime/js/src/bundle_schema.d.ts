/** docs/bundle-format.schema.json; scripts/build.mjs makes the module. */
export declare const schema: any;
