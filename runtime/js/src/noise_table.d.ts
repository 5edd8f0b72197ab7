/** The quantiles of the noise, packed; scripts/build.mjs makes the module. */
export declare const packedTable: string;
